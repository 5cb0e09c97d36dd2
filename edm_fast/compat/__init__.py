"""Other packages' interfaces, executed by this one. Nothing here changes those packages."""
