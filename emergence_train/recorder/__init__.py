"""Recording for the analyses: tables, logs, environment. Independent of configuration and DeepSpeed, for any trainer."""
