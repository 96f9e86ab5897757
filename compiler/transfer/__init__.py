"""Moving bytes: from ranges of input files to ranges of output files, in bounded memory, several threads at once."""
