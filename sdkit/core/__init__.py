"""The ground floor: errors, hashing and plugin discovery. Imports the standard library only."""
