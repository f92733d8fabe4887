"""``fedhp init``: looks at data, and drafts a scenario that suits it."""
