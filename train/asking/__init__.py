"""Answers to questions about new videos: the one place where stage two calls stage one."""
