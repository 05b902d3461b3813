"""The missing-modality methods, one file each, listed by name in `registry`; and what several of them share.

Shared: `imputation`, `filling` and `video_bank` (replace missing features), `both_missing`, `losses`.
`grounding` is the pre-training of a backbone, not a method.
"""
