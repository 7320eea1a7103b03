"""The commands by theme: each file adds its own to the parser (`add`), and each command is a few lines that call one
function elsewhere. They import what they need when they run, and read what the user
has written first: torch and DeepSpeed take seconds, a mistake in a key is said at once."""
