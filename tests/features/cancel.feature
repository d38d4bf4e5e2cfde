Feature: Cancel a job
  A job can be cancelled quickly, from anywhere, any number of times, and the worker proves that it stopped
  (M0-W-1330, WORK-3044, SYS-6.3.5).

  Scenario: Cancel active inference job
    Given an active inference job with job_id "test-123"
    When I POST to /cancel with {"job_id": "test-123"}
    Then I should receive 202 Accepted
    And the SSE stream should receive error event with code "CANCELLED"
    And token generation should stop within 100ms

  Scenario: Cancel unknown job (idempotent)
    Given no active job with job_id "unknown-123"
    When I POST to /cancel with {"job_id": "unknown-123"}
    Then I should receive 202 Accepted
    And no error should occur

  Scenario: Cancel already-completed job (idempotent)
    Given a completed job with job_id "completed-123"
    When I POST to /cancel with {"job_id": "completed-123"}
    Then I should receive 202 Accepted
    And no error should occur

  Scenario: Cancel during model loading
    Given a job with job_id "early-123" that waits for the model to load
    When I POST to /cancel with {"job_id": "early-123"}
    Then I should receive 202 Accepted
    And the SSE stream should receive error event with code "CANCELLED"
    And the job should have been in phase "loading"

  Scenario: Cancel while queued
    Given a job with job_id "queued-123" that waits behind others
    When I POST to /cancel with {"job_id": "queued-123"}
    Then I should receive 202 Accepted
    And the SSE stream should receive error event with code "CANCELLED"
    And the job should have been in phase "queued"
    And the others should go on

  Scenario: Cancel during a long prefill
    Given a job with job_id "prefill-123" in the middle of reading a long prompt
    When I POST to /cancel with {"job_id": "prefill-123"}
    Then I should receive 202 Accepted
    And the SSE stream should receive error event with code "CANCELLED"
    And the job should have been in phase "prefill"
    And token generation should stop within 100ms

  Scenario: Cancel before the first token
    Given a job with job_id "first-123" that has started and has no token yet
    When I POST to /cancel with {"job_id": "first-123"}
    Then I should receive 202 Accepted
    And the SSE stream should receive error event with code "CANCELLED"
    And token generation should stop within 100ms

  Scenario: Cancel on the last token
    Given a job with job_id "last-123" that is about to generate its last token
    When I POST to /cancel with {"job_id": "last-123"}
    Then I should receive 202 Accepted
    And the SSE stream should have exactly one ending

  Scenario: Cancel after natural completion
    Given a completed job with job_id "natural-123"
    When I POST to /cancel with {"job_id": "natural-123"}
    Then I should receive 202 Accepted
    And the job should still be "completed"
    And no error should occur

  Scenario: Cancel after a failure
    Given a failed job with job_id "failed-123"
    When I POST to /cancel with {"job_id": "failed-123"}
    Then I should receive 202 Accepted
    And the job should still be "failed"
    And no error should occur

  Scenario: Many cancels at once for one job
    Given an active inference job with job_id "popular-123"
    When 20 clients POST to /cancel with {"job_id": "popular-123"} at once
    Then all of them should receive 202 Accepted
    And the SSE stream should receive error event with code "CANCELLED"
    And token generation should stop within 100ms

  Scenario: Cancel with an empty job_id
    Given an active inference job with job_id "bystander-1"
    When I POST to /cancel with {"job_id": ""}
    Then I should receive 400 Bad Request with code "INVALID_REQUEST" for "job_id"
    And the job should go on

  Scenario: Cancel with a malformed job_id
    Given an active inference job with job_id "bystander-2"
    When I POST to /cancel with {"job_id": "bystander-2 or 1=1"}
    Then I should receive 400 Bad Request with code "INVALID_REQUEST" for "job_id"
    And the job should go on
