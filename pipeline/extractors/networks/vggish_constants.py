"""Constants of VGGish's log-mel input and its batch sizes, without importing torch.

The modules of the network compute with them; `pipeline.extractors.vggish` writes them into the feature's spec.
Source: Hershey et al., ICASSP 2017; the recipe of MUSIC-AVQA's feature scripts (Li et al., CVPR 2022).
"""

SAMPLE_RATE_HZ = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SAMPLES = 512
FRAMES = 96
BANDS = 64
LOWEST_HZ = 125.0
HIGHEST_HZ = 7500.0
LOG_OFFSET = 0.01
# With five examples the convolutions stay in the processor's caches. The embedding layers read 288 MB of weights per
# batch, so their batches are larger: two for a minute of audio.
EXAMPLES_PER_BATCH = 5
ROWS_PER_EMBEDDING = 30

# The filter that resampy calls `kaiser_best`: a sinc of 64 zero crossings under a Kaiser window.
KAISER_BEST = {
    "resampling_method": "sinc_interp_kaiser",
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "beta": 14.769656459379492,
}
# 11,025 Hz needs 441/640, the largest denominator of a common rate. Unusual rates (44,101 Hz) are rounded to such a
# ratio, by less than 0.08 %: their exact filter bank would take gigabytes.
LARGEST_DENOMINATOR = 640
