"""The parts of a sweep: its fields and plan, the process that runs one stage, the rows, the plots and the page."""
