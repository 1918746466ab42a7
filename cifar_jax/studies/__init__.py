"""Questions that several ordinary runs answer together: the search and the audit."""
