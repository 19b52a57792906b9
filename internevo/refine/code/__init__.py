"""The code chain: from folders of repositories to one document a repository, its files in the order of dependency."""
