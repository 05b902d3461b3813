"""The default decoder: PyAV, which carries its own FFmpeg."""
