"""What `check_env` looks at: playing an environment, watching every call, playing it again."""
