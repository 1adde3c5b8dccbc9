"""The recipe of BookCorpus in small: neighbouring sentences of Wikipedia and of news that a package ships."""
