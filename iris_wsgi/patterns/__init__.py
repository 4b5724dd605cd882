"""The ten serving patterns, one package each."""
