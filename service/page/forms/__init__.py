"""Forms of the page, and their parts; they are made of the API's schemas, and show what they post."""
