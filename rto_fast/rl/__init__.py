"""What lies between a policy and its step: answers, scores, rewards, advantages."""
