"""The commands of stage two. They parse options and show results; none loads torch before it runs."""
