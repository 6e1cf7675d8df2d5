"""What would raise Dice: changes of detector, maps and scans, chosen on validation and measured on test."""
