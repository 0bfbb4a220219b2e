"""From a float model to the Q/DQ model, and the precision of the rest."""
