"""The kinds of change that can be trained beside a layer, one file each; the file's name is what ``algo=`` says."""
