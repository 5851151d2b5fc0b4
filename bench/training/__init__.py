"""Training of CLIPs: contrastive fine-tuning, and pretraining from scratch."""
