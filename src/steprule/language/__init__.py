"""What a rule is written in: the rule itself, its recording on symbols, its forms."""
