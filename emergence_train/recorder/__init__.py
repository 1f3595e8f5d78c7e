"""What a run writes down for the analyses. Needs neither a configuration nor DeepSpeed: any trainer can use it."""
