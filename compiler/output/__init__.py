"""What is written, all or nothing: file layouts, the journal of a run, and ranks that share one output."""
