"""What longtake's parts are worth: families of tables, each with its command, and what they share."""
