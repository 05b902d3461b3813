"""Stage two: stores only, to models, to tables. It never decodes a video nor runs an extractor."""
