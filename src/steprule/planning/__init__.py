"""From parameters to engines, kept from step to step."""
