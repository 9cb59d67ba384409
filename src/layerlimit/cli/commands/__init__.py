"""One module per sub-command, each with a click command called ``command``; loaded when it is used."""
