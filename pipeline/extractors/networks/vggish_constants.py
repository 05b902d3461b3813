"""What VGGish hears of a second of sound and how many at once, as numbers, without torch.

`pipeline.extractors.networks.vggish` hears by them, `pipeline.extractors.vggish` describes the feature by them.
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
# The convolutions stay in the processor's caches with five examples; the embedding layers read 288 MB of weights for
# every batch, so theirs is larger: a minute takes two batches.
EXAMPLES_PER_BATCH = 5
ROWS_PER_EMBEDDING = 30

# The filter that resampy calls `kaiser_best`: a sinc of 64 zero crossings under a Kaiser window.
KAISER_BEST = {
    "resampling_method": "sinc_interp_kaiser",
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "beta": 14.769656459379492,
}
# 11,025 Hz needs 441/640, the largest denominator of a usual rate. Odd rates (44,101 Hz) are rounded to such
# a ratio, by less than 0.08 %: their exact filter bank would take gigabytes.
LARGEST_DENOMINATOR = 640
