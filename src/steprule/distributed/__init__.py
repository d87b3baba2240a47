"""Many processes: what each has of a sharded tensor, and what they tell each other in a step."""
