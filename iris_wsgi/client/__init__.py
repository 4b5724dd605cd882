"""Client of the Open Inference Protocol."""
