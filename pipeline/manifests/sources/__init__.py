"""Where manifests are built from, a file for each dataset release; `registry` lists them by name."""
