"""The commands by theme: each file adds its own to the parser (`add`), and each command is a few lines that call one
function elsewhere. They import what they need when they run, which for training takes seconds."""
