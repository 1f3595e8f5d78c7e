"""Looking at runs while they train, from their files alone: `emergence-train runs` and `emergence-train watch`.

Nothing here writes, locks or asks the training process for anything, and what is read does not grow with the run.
"""
