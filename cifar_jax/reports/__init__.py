"""What is shown to people: tables, pictures, pages."""
