"""A Flower ``Grid`` of our own over many nodes: in this process, in processes beside it, or on Ray."""
