"""What all rooms need of the file system: errors, durable writes, processes, URLs."""
