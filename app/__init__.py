"""Predictive Propositions Service: which propositions should this user see here and now?"""
