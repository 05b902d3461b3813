"""Datasets as files: manifests of videos, questions and vocabularies, and the sources they are built from."""
