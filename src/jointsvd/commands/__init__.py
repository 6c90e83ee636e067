"""The command lines, by Hydra: a configuration in, a call, something printed."""
