"""The paper's theory: the limit of the contrastive loss and its rate, minimisers, and what its terms estimate."""
