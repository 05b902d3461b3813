"""The default decoder: PyAV, which includes its own FFmpeg."""
