"""Networks implemented or wrapped here, and the computation of their inputs."""
