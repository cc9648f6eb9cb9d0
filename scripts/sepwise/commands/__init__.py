"""The subcommands, one file each; what they import is light, the rest is imported when they run."""
