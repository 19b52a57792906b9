"""Starting runs on several processes."""
