"""What tests use: the rule of errors, named cases, networks, and programs that tests start in their own processes."""
