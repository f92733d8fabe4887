"""``fedhp compare``: aggregation strategies on equal terms, over seeds and one varied key."""
