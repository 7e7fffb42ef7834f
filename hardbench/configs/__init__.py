"""The settings of every command, one file each and named like it. Help and checks need nothing heavier."""
