"""Loss functions: pure functions on arrays, with no model inside."""
