"""What the report is made of: markup that escapes by itself, charts, pictures of cases, the commands, the sections."""
