"""Drawing: from a prompt to pictures, step by step."""
