"""One media file to frames and a waveform on the shared time axis."""
